"""What talks to an oVirt, OLVM or RHV engine: the session, and each kind of object a backup or restore uses.

The facts about the engine are of ovirt-engine-sdk-python 4.6 and ovirt-engine 4.4 to 4.5.
"""
