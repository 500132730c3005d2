"""Jobs, data and models joined with the federation's wire: a server that plays jobs, a client with rows, and both on one machine."""
