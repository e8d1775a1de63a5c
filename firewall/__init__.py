"""The nftables policy and the SIP shield."""
