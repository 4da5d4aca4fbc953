"""Meshes, layouts, and programs of several devices.

meshes          how many devices lie along each axis, in which order, and whether a config fits
sharding        the one table from logical axes to mesh axes
placement       which rows of a batch lie on which device
context         sequences split over devices
pipeline        layers split over devices, through which microbatches go
numerics        the settings of JAX that every program has
tpu, gpu        how kinds of TPU and of GPU differ beside their rates
"""
