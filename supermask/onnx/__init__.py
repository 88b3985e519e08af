"""ONNX files of subnetworks: the graph, its weights in three forms, and the check against torch.

`export` puts together what `graph` and `weights` write with `builder`; `check` runs it.
"""
