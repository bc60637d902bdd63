"""The lab: a page on this machine that looks into one network."""
