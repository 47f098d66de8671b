"""Several devices and processes: initialisation, placement of arrays, data parallelism and FSDP."""
