"""Run by the Python of a client's environment: drives `hf_xet`, unmodified, against a content store.

`upload BASE SCOPE FILE...` prints [[hash, size], ...]; `download BASE SCOPE HASH:SIZE:FILE...` writes files. With
`--error` first, prints the error that is expected.
"""

import json
import sys
import time
import urllib.request

import hf_xet


def token(base, kind, scope):
    with urllib.request.urlopen(f"{base}/token/{kind}?scope={scope}") as answer:
        return json.load(answer)


def upload(base, scope, *paths):
    first = token(base, "write", scope)

    def refresh():
        found = token(base, "write", scope)
        return found["accessToken"], found["exp"]

    began = time.time()
    done = hf_xet.upload_files(
        list(paths), first["casUrl"], (first["accessToken"], first["exp"]), refresh, None, "bucket"
    )
    return {
        "files": [[one.hash, getattr(one, "file_size", None) or one.filesize] for one in done],
        "seconds": time.time() - began,
    }


def download(base, scope, *wanted):
    first = token(base, "read", scope)

    def refresh():
        found = token(base, "read", scope)
        return found["accessToken"], found["exp"]

    infos = []
    for one in wanted:
        name, size, path = one.split(":", 2)
        infos.append(hf_xet.PyXetDownloadInfo(destination_path=path, hash=name, file_size=int(size)))
    began = time.time()
    hf_xet.download_files(infos, first["casUrl"], (first["accessToken"], first["exp"]), refresh, None)
    return {"seconds": time.time() - began}


def main():
    program, *arguments = sys.argv[1:]
    expects = program == "--error"
    if expects:
        program, *arguments = arguments
    try:
        print(json.dumps({"upload": upload, "download": download}[program](*arguments)))
    except Exception as error:
        if not expects:
            raise
        print(json.dumps(f"{type(error).__name__}: {error}"))


main()
