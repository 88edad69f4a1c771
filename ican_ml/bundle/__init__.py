"""What is deployed: the ONNX network, the input schema, golden cases, and a manifest that vouches for every byte."""
