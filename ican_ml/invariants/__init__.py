"""What must hold of every encoder, network, bundle and data path, as checks that anyone can run on their own."""
