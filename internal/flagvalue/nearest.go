package flagvalue

// Nearest returns the name that is at most two letters away from a mistyped one, or
// a fourth of a long one's, or "".
func Nearest(mistyped string, names []string) string {
	best, least := "", max(2, len(mistyped)/4)+1
	for _, name := range names {
		if d := distance(mistyped, name); d < least && d < len(name) {
			best, least = name, d
		}
	}
	return best
}

// distance is that of Levenshtein: how many letters have to be put in, taken
// out or changed.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(diagonal+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
