"""What an attacker does, and what must hold: each module is one kind of attack.

The attackers are an ordinary user of the node, a container that may write one directory of the
host, a runtime that answers nonsense, and a secret in the wrong place.
"""
