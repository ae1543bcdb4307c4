"""Pure functions of tensors: V-trace and the losses."""
