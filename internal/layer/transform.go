package layer

// Transform is a layer on the client's socket of a tunnel that an event loop relays,
// as a pure state machine: it has no socket, no clock and no goroutine. Whoever has
// those reads and writes, tells it when time has passed, and does what it says:
//
//	socket → In → the backend
//	the backend → Out → socket
//	Back → socket (what the layer itself has to say)
//
// A WebSocket is one (internal/websocket). TLS is one (internal/tlslayer) although its
// library reads and writes by itself: what is below it is memory. A WebSocket inside TLS
// is one on top of the other. A resumable tunnel is one whose end is not the tunnel's.
//
// At rest a Transform should hold no buffer. Its methods do not keep what they are
// given.
type Transform interface {
	// In takes what came from the socket, and returns what that is for the backend. It
	// may work in place: the result is a part of b or of the layer's own memory, and is
	// good until the next call. Once the state is not Open, nothing more is given.
	In(b []byte) (out []byte, state State)

	// Out takes what came from the backend, and returns what that is for the socket; to
	// be sent as a whole, before anything of Back. The first Headroom bytes of b are
	// room that it may use. The result is as In's.
	Out(b []byte) []byte

	// Back appends what the layer has to say by itself, which is then taken for sent.
	// It is asked when nothing else is on its way to the socket.
	Back(b []byte) []byte
	// Due tells whether Back would append anything.
	Due() bool

	// Finish says that the backend has finished, or has failed: no Out will follow.
	// Finished tells whether the client has been told, or is about to be, that nothing
	// more comes, if that asks for its own end.
	Finish(failed bool)
	Finished() bool
	// HalfCloses tells whether each direction ends by itself, as TCP's do: whoever has
	// finished still gets what the other sends, and the layer has no last words.
	HalfCloses() bool
	// Leave says that the gateway ends the tunnel, which the client may not know yet.
	Leave()
	// Cut tells what it means that the socket has ended without a word, by an error if
	// broken.
	Cut(broken bool) State

	// Look is called at a steady pace. waits tells whether whatever the client sends
	// would be read at once. It returns false for a client that is to be given up.
	Look(waits, writes bool) (alive bool)

	// Append appends the layer's state, for another process.
	Append(b []byte) []byte
	// Name is that of its kind, for the same. Empty: its state cannot be had, and it
	// stays in this process.
	Name() string
}

// Sharer is a Transform that works in memory of its loop's. It is given that before
// anything else, and then an In of nothing, out of which comes what it holds already.
type Sharer interface {
	Share(room *Room)
}

// Room is memory that all layers of a loop share, each for as long as what it returns is
// good. So a layer at rest needs none. The loop, and no other, calls them one by one.
type Room struct {
	In, Out []byte   // of what In and Out return; they grow to what that takes
	Spare   [][]byte // to be taken, and given back
}

// Headroom is how many bytes Out may put before what it is given.
const Headroom = 16

// State is what a layer knows of its client.
type State uint8

const (
	Open       State = iota
	HalfClosed       // the client has finished, and still reads
	Finished         // it has finished, and wants nothing more either
	Failed           // it closed with an error, or left without a word
	Wrong            // it does not keep to the protocol
)

// Over tells whether the client gets nothing more.
func (s State) Over() bool { return s > HalfClosed }
