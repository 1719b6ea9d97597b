package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gateway/internal/token"
)

// shortSecret is the length in bytes under which a secret gets a warning: who
// holds one sealed line can try secrets at millions a second.
const shortSecret = 16

// tokenKeys loads the keys for tokens; nil if there are none.
func (cfg *Config) tokenKeys(log *slog.Logger) (*token.Keys, error) {
	if cfg.TokenKeys == "" {
		return nil, nil
	}
	keys, err := token.Load(cfg.TokenKeys, cfg.TokenAudience, log)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cfg.sources["token-keys"], err)
	}
	return keys, nil
}

// tokenHandshakeMax is the default of -handshake-max with tokens, in bytes: they
// are longer than sealed lines.
const tokenHandshakeMax = 2048

// checkTokens sees whether there are keys to begin with.
func (cfg *Config) checkTokens() error {
	if cfg.TokenKeys == "" {
		switch {
		case !cfg.Legacy && cfg.opens():
			return fmt.Errorf("%s=0 leaves only tokens, which need -token-keys", cfg.sources["legacy"])
		case cfg.TTL != 0:
			return errors.New("-ttl is for tokens, which need -token-keys")
		case cfg.TokenAudience != "":
			return fmt.Errorf("%s is for tokens, which need -token-keys", cfg.sources["token-audience"])
		}
		return nil
	}
	if cfg.TTL != 0 && cfg.Action != actionSeal {
		return errors.New("-ttl is for -seal, which is not given")
	}
	if cfg.Action == actionSeal && cfg.TTL == 0 && !cfg.Legacy {
		return errors.New("-seal needs -ttl, the time after which the token expires")
	}
	if cfg.sources["handshake-max"] == "" {
		cfg.HandshakeMax = tokenHandshakeMax
	}
	_, err := cfg.tokenKeys(slog.New(slog.DiscardHandler))
	return err
}

// opens tells whether there is anything to seal or to open.
func (cfg *Config) opens() bool {
	return cfg.Action == actionSeal || cfg.Action == actionOpen ||
		slices.ContainsFunc(cfg.Listen, func(l listening) bool { return l.forward == nil })
}

// opensLines tells whether there is anything for a secret to do.
func (cfg *Config) opensLines() bool {
	switch {
	case !cfg.Legacy:
		return false
	case cfg.Action == actionSeal:
		return cfg.TTL == 0
	case cfg.Action == actionOpen:
		return cfg.TokenKeys == ""
	}
	return slices.ContainsFunc(cfg.Listen, func(l listening) bool { return l.forward == nil })
}

// loadSecrets gathers the secrets of all sources.
func (cfg *Config) loadSecrets() error {
	// A shell's echo and many secret stores leave a newline at the end, which
	// nobody means and nobody sees.
	if secret := strings.TrimRight(cfg.secret, "\r\n"); secret != "" {
		cfg.addSecrets(cfg.sources["secret"], []byte(secret))
	}
	if cfg.secretFile != "" {
		secrets, err := readSecrets(cfg.secretFile)
		if err != nil {
			return fmt.Errorf("%s: %w", cfg.sources["secret-file"], err)
		}
		cfg.addSecrets(cfg.sources["secret-file"], secrets...)
	}
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" {
		secrets, err := readSecrets(filepath.Join(dir, "secret"))
		if err == nil {
			cfg.addSecrets("$CREDENTIALS_DIRECTORY/secret", secrets...)
		} else if !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("$CREDENTIALS_DIRECTORY: %w", err)
		}
	}
	if cfg.TokenKeys != "" {
		cfg.SecretSources = append(cfg.SecretSources, cfg.sources["token-keys"])
	}
	if len(cfg.Secrets) == 0 && cfg.opensLines() {
		if cfg.Action == actionSeal && cfg.TokenKeys != "" {
			return errors.New("-seal needs -ttl for a token, or a secret for a sealed line")
		}
		return errors.New("a secret is required: set -secret-file, GATEWAY_SECRET, -secret, or a systemd credential named secret; or -token-keys and -legacy=0")
	}
	return nil
}

// addSecrets adds those that are new.
func (cfg *Config) addSecrets(source string, secrets ...[]byte) {
	cfg.SecretSources = append(cfg.SecretSources, source)
	for _, s := range secrets {
		if !slices.ContainsFunc(cfg.Secrets, func(have []byte) bool { return string(have) == string(s) }) {
			cfg.Secrets = append(cfg.Secrets, s)
		}
	}
}

// readSecrets reads a file of secrets, at least one.
func readSecrets(name string) ([][]byte, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var secrets [][]byte
	for line := range strings.Lines(strings.TrimPrefix(string(text), "\ufeff")) {
		line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		secrets = append(secrets, []byte(line))
	}
	if len(secrets) == 0 {
		return nil, fmt.Errorf("%s holds no secret: want one a line", name)
	}
	return secrets, nil
}
