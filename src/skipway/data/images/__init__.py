"""One file to one tensor: photo formats, deep images, scans."""
