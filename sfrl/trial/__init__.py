"""`sfrl try`: a verdict on any environment in a minute.

steps.py     one step after the other, within the time that there is
look.py      what random play shows: spaces, rules, rewards, episodes, times
play.py      the process in which an environment plays at random
training.py  a short training run, in a process of its own
verdict.py   what both come to, and what to set
page.py      the same as a page of text
facts.py     the same for programs
"""
