"""What the machine can do: the limits beside which measured figures stand."""
