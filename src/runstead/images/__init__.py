"""OCI images: fetched from registries, unpacked once, kept while they are used."""
