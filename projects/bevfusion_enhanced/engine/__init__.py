"""Hooks and runner glue: what connects `checkpoints/` and the command lines to MMEngine.

    parallel, runs              processes of one training; what a run writes to its folder
    configuration, loop         a config before anything is built; the loop over epochs
    resume                      the state that a run goes on from
    checkpointing, hooks        saving and loading by hooks; hooks that watch and write down
    commands                    what the command lines in `tools/` do

A part uses those above it, and `registered` names all that a config can.
"""
