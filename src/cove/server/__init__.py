"""The composition root: fits drivers, store, engine, gateway and API into one process.

The only package that names concrete drivers and stores. Run by `cove up`:
`python -m cove.server [doctor] --data DIR --listen HOST:PORT --domain D --driver auto|oci|process`.
"""
