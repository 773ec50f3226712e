"""What a round is: who is asked when, how long tasks take, when replies become a model.

``policies.py`` has what the round loop follows, ``schedules/`` the settings that choose it, and
``clock.py`` how long tasks take on simulated devices.
"""
