"""Where the time goes: stages of the engines timed from outside, beside what the machine can do at most."""
