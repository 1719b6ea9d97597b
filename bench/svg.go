package main

import (
	"fmt"
	"html"
	"strings"
)

// picture is an SVG in the making. It is plain enough for any viewer, and
// follows the reader's light or dark theme where the viewer knows of themes.
type picture struct {
	width, height float64
	body          strings.Builder
}

// The classes of what is drawn, in light and in dark. The colours of the
// contenders differ in brightness too, for those who see few colours.
const style = `
text { font: 13px system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; fill: #1f2328 }
.title { font-size: 17px; font-weight: 600 }
.note { font-size: 12px; fill: #59636e }
.value { font-size: 11px; fill: #59636e }
.strong { font-size: 11px; font-weight: 700 }
.value, .strong { stroke: #ffffff; stroke-width: 3px; stroke-linejoin: round; paint-order: stroke }
.right { text-anchor: end }
.middle { text-anchor: middle }
.paper { fill: #ffffff }
.grid { stroke: #d8dee4; stroke-width: 1 }
.base { stroke: #59636e; stroke-width: 1.5; stroke-dasharray: 4 3 }
.c0 { fill: #0969da; stroke: #0969da }
.c1 { fill: #6e7781; stroke: #6e7781 }
.c2 { fill: #a8b1ba; stroke: #a8b1ba }
.c3 { fill: #4b9e6b; stroke: #4b9e6b }
.c4 { fill: #d4a03a; stroke: #d4a03a }
.c5 { fill: #80bfff; stroke: #80bfff }
.c6 { fill: #5d8aa8; stroke: #5d8aa8 }
.c7 { fill: #8e6bbf; stroke: #8e6bbf }
.bar { stroke: none }
.line { stroke-width: 2.5; stroke-linecap: round }
@media (prefers-color-scheme: dark) {
	text { fill: #e6edf3 }
	.note, .value { fill: #9198a1 }
	.value, .strong { stroke: #0d1117 }
	.paper { fill: #0d1117 }
	.grid { stroke: #2d333b }
	.base { stroke: #9198a1 }
	.c0 { fill: #4493f8; stroke: #4493f8 }
	.c1 { fill: #9198a1; stroke: #9198a1 }
	.c2 { fill: #596069; stroke: #596069 }
	.c5 { fill: #1f5aa8; stroke: #1f5aa8 }
	.c6 { fill: #7fa8c4; stroke: #7fa8c4 }
}
`

func (p *picture) text(x, y float64, class, text string) {
	fmt.Fprintf(&p.body, "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\">%s</text>\n", x, y, class, html.EscapeString(text))
}

func (p *picture) rect(x, y, width, height float64, class string) {
	fmt.Fprintf(&p.body, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" rx=\"2\" class=\"%s\"/>\n",
		x, y, max(width, 1), height, class)
}

func (p *picture) line(x1, y1, x2, y2 float64, class string) {
	fmt.Fprintf(&p.body, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"%s\"/>\n", x1, y1, x2, y2, class)
}

func (p *picture) dot(x, y, radius float64, class string) {
	fmt.Fprintf(&p.body, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\" class=\"%s\"/>\n", x, y, radius, class)
}

// legend names the contenders in a row.
func (p *picture) legend(x, y float64, names []string, label, class func(string) string) {
	for _, name := range names {
		p.rect(x, y-10, 12, 12, "bar "+class(name))
		p.text(x+18, y, "", label(name))
		x += 18 + 7.4*float64(len(label(name))) + 22
	}
}

func (p *picture) String() string {
	return fmt.Sprintf("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" width=\"%.0f\" height=\"%.0f\" role=\"img\">\n"+
		"<style>%s</style>\n<rect width=\"100%%\" height=\"100%%\" class=\"paper\"/>\n%s</svg>\n",
		p.width, p.height, p.width, p.height, style, p.body.String())
}
