"""The ground: params, blocks, updates, metrics, randomness, reduction, the local step, the round loop and the contracts.

Nothing here knows a framework, an engine, a file or a network. State goes in, state comes out.
"""
