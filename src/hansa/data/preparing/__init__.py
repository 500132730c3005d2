"""How a preparation is fitted from sums: layouts, questions, the rule of each transformer, and the assembly of fitted objects.

The public face is :mod:`hansa.data.preparation`.
"""
