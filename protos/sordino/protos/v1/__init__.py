"""The contract ``sordino.v1``: the .proto files, and what `tools/generate_protos.py` made of them.

`docs/contract.md` describes the protocol; the .proto files document every message and field.
"""
