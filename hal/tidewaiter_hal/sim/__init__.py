"""The injector as a program: physics, protocol face, faults and panel. Never part of a product image.

Nothing outside this package may import it.
"""
