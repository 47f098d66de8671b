"""A trained model as programs of named arrays, for runtimes that do not know diffjax."""
