"""The command line: `hansa --help`."""
