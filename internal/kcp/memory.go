package kcp

import "time"

// A memory knows which conversations something has happened to lately. It has
// room for so many; when it is full, the oldest is forgotten.
type memory struct {
	span  time.Duration
	room  int
	at    map[conversation]int64 // by sinceStart
	order []remembered
}

type remembered struct {
	who conversation
	at  int64
}

func newMemory(span time.Duration, room int) *memory {
	return &memory{span: span, room: room, at: make(map[conversation]int64)}
}

func (m *memory) add(who conversation, now int64) {
	m.at[who] = now
	m.order = append(m.order, remembered{who, now})
	m.expire(now)
}

// has tells whether the conversation is remembered.
func (m *memory) has(who conversation, now int64) bool {
	at, known := m.at[who]
	return known && now-at <= int64(m.span)
}

// take is has, and forgets the conversation.
func (m *memory) take(who conversation, now int64) bool {
	known := m.has(who, now)
	delete(m.at, who)
	return known
}

// expire forgets what is old or too much.
func (m *memory) expire(now int64) {
	n := 0
	for n < len(m.order) && (len(m.order)-n > m.room || now-m.order[n].at > int64(m.span)) {
		if old := m.order[n]; m.at[old.who] == old.at {
			delete(m.at, old.who)
		}
		n++
	}
	m.order = m.order[n:]
}
