"""The network, from scratch: shortcut, block, stem, network, zoo. Never imports data."""
