"""Where the work runs: one file per engine, each an adapter of the contract :class:`hansa.core.contracts.Engine`."""
