"""The trading system: state machine, risk, take profit and stop loss, SIM order router, positions, scoring.

Pure: it reads no files and no wall clock; time comes from the events.
"""
