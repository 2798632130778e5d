"""The defences that ours is compared with, a file each: what each adds to the common trainer."""
