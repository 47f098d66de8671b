"""Several devices and processes: who they are, where arrays live, pmap and FSDP."""
