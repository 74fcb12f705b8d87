package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"orlop/chunk"
	"orlop/repo"
	"orlop/seal"
	"orlop/store"
)

func (a *app) initCommand() *cobra.Command {
	var chunker string
	c := &cobra.Command{
		Use:   "init",
		Short: "Make a repository and a key for it",
		Long: `Init makes an empty repository. Without a password it generates a key, keeps it
in a file that only you can read, and says where: copy it somewhere safe, for
nobody can read the backups without it. With a password (--password-file,
ORLOP_PASSWORD, ...) the password opens the repository and no key file is made.`,
		Example: `  orlop init
  orlop init --repo /mnt/disk/backup
  ORLOP_PASSWORD_FILE=~/.secret orlop init --chunker rabin`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.initRepository(c.Context(), chunk.Algorithm(chunker))
		},
	}
	c.Flags().StringVar(&chunker, "chunker", string(chunk.Gear), "how files are cut, `WAY` is gear or rabin; it cannot be changed later")
	_ = c.RegisterFlagCompletionFunc("chunker", cobra.FixedCompletions([]string{string(chunk.Gear), string(chunk.Rabin)}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func (a *app) initRepository(ctx context.Context, algorithm chunk.Algorithm) error {
	cut, err := chunk.Default(algorithm)
	if err != nil {
		return usageError{err}
	}
	where, err := a.repository()
	if err != nil {
		return err
	}
	s, err := a.givenSecret()
	if err != nil {
		return err
	}
	st, err := store.CreateDir(where)
	if err != nil {
		return fmt.Errorf("make %s: %w", where, err)
	}
	for o, err := range st.List(ctx, "") {
		if err != nil {
			return fmt.Errorf("list %s: %w", where, err)
		}
		return fmt.Errorf("%s: %w (found %s)", where, repo.ErrExists, o.Name)
	}
	key, config, keyFile := seal.NewKey(), repo.NewConfig(cut), ""
	switch {
	case s != nil && s.text != "":
		if key, err = seal.ParseText(s.text); err != nil {
			return fmt.Errorf("the key in %s: %w", s.from, err)
		}
	case s == nil:
		// Before the repository: one whose key was lost in a crash would look
		// fine until the day it is needed.
		if keyFile = keyPath(config.Repository); keyFile == "" {
			return errHomeless("XDG_CONFIG_HOME for the key")
		}
		if err := writeKeyFile(keyFile, key.Text()); err != nil {
			return err
		}
		secret, err := seal.Text(key.Text())
		if err != nil {
			return err
		}
		s = &given{secret: secret}
	}
	if err := repo.InitAs(ctx, st, config, key, s.secret); err != nil {
		return fmt.Errorf("init %s: %w", where, err)
	}
	if a.json {
		return a.printJSON(map[string]any{
			"message_type": "initialized", "id": config.Repository, "repository": where, "key_file": keyFile, "chunker": cut.Algorithm,
		})
	}
	fmt.Fprintf(a.out, "repository %s\n", where)
	if keyFile == "" {
		a.say("The password or key you gave opens it. Without it nobody can read the backups.")
	} else {
		fmt.Fprintf(a.out, "key        %s\n", keyFile)
		a.say("\nCopy the key to a safe place that is not this machine: without it nobody can read\nthe backups. \"orlop key export\" prints it.")
	}
	a.say("A backup on the same disk as its source is half a backup: keep a copy elsewhere.")
	return nil
}

// writeKeyFile writes a key where only its owner can read it, durably.
func writeKeyFile(path, text string) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("keep the key: %w", err)
	}
	if err := renameio.WriteFile(path, []byte(text+"\n"), 0o600, renameio.IgnoreUmask()); err != nil {
		return fmt.Errorf("keep the key: %w", err)
	}
	// The rename is only durable when the directories are.
	for _, d := range []string{dir, filepath.Dir(dir), filepath.Dir(filepath.Dir(dir))} {
		f, err := os.Open(d)
		if err != nil {
			return fmt.Errorf("keep the key: %w", err)
		}
		err = f.Sync()
		f.Close()
		if err != nil {
			return fmt.Errorf("keep the key: sync %s: %w", d, err)
		}
	}
	return nil
}
