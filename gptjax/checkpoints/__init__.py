"""Checkpoints: written, found, checked, read.

validity        the manifest of a step, and which steps can be trusted; no JAX
consistency     whether a run directory agrees with itself
checkpointer    steps written while training goes on, and restored onto any mesh
saving          what several processes write together
checksums       of arrays and of their shards, the same on every mesh
base            the run that holds the frozen parameters of another's steps, named by hash; no JAX
stored          arrays as they lie on disk, read chunk by chunk, without a mesh
weights         parameters alone, in any dtype, on any mesh
loading         which step that is: the same in every process
"""
