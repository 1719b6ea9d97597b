# What Godot 3 and Godot 4 call differently. For Godot 4 change this file and streams.gd:
# PoolByteArray is PackedByteArray there, subarray(a, b - 1) is slice(a, b), to_utf8() is
# to_utf8_buffer(), OS.get_ticks_msec() is Time.get_ticks_msec(), and a callback is a Callable.

static func no_bytes():
	return PoolByteArray()

static func bytes_of(list):
	return PoolByteArray(list)

# Bytes from one offset up to another one, which is not among them.
static func slice(b, from, to):
	to = min(to, b.size())
	if from >= to:
		return PoolByteArray()
	return b.subarray(from, to - 1)

static func utf8(text):
	return text.to_utf8()

# Milliseconds.
static func now():
	return OS.get_ticks_msec()

static func sleep(milliseconds):
	OS.delay_msec(int(milliseconds))

static func random(n):
	return Crypto.new().generate_random_bytes(n)

static func call_back(callback, argument):
	return callback.call_func(argument)
