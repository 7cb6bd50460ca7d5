"""Runtime of the executables: parameters, command lines, signals, failures, Fast DDS. Imports no other package."""
