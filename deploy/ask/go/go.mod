module gateway/deploy/ask

go 1.26.0
