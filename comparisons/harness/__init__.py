"""What every suite shares: its interface, results on disk, recomputed truth, the machine."""
