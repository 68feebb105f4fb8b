"""The subcommands of `omnitok`, one file each; nothing here imports torch before it has to."""
