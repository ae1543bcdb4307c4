"""What each part costs on this machine, and which arrangement is fastest."""
