"""`python -m runstead.cli` is `runstead`: for a server that starts another one of itself."""

from runstead.cli.main import main

if __name__ == "__main__":
    main()
