"""What is trained: one file per framework, each an adapter of the contract :class:`hansa.core.contracts.Learner`."""
