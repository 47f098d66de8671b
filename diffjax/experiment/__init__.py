"""From a config to functions: the only room that reads one."""
