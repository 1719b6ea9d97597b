"""X25519 (RFC 7748), for Pythons without a library that has it.

Python's numbers take a time that depends on their values, so this is for keys that live
as long as one tunnel, as those of the protocol do, and for nothing that is kept.
"""

P = 2**255 - 19


def x25519(private, public):
    """Returns the 32 bytes that both sides get. All zeros is a public key that is none."""
    k = int.from_bytes(private, "little")
    k = k & ~7 & ~(128 << 8 * 31) | 64 << 8 * 31
    x1 = int.from_bytes(public, "little") & (2**255 - 1)
    x2, z2, x3, z3, swap = 1, 0, x1, 1, 0
    for t in reversed(range(255)):
        bit = k >> t & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a % P, b * b % P, d * a % P, c * b % P
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % P, x1 * (da - cb) ** 2 % P
        x2, z2 = aa * bb % P, e * (aa + 121665 * e) % P
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, P - 2, P) % P).to_bytes(32, "little")


BASE = (9).to_bytes(32, "little")
