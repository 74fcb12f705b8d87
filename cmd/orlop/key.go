package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

// keyExported is the mark that the key was copied once.
const keyExported = "key-exported"

func (a *app) keyCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "key",
		Short: "Keep the key of a repository safe",
		Args:  unknownCommand,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	var output string
	export := &cobra.Command{
		Use:   "export",
		Short: "Print the key, to be kept in a safe place",
		Long: `Export prints the key that reads and writes the repository, as one line of text.
It works even when all key slots of the repository are lost. Whoever has it can
read every backup: print it, or keep it in a password manager.`,
		Example: `  orlop key export
  orlop key export --output /media/usb/orlop.key`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.exportKey(c.Context(), output) },
	}
	export.Flags().StringVarP(&output, "output", "o", "", "write it to a new `FILE` that only you can read")
	c.AddCommand(export)
	return c
}

func (a *app) exportKey(ctx context.Context, output string) error {
	r, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	key, err := r.Key()
	if err != nil {
		return err
	}
	switch {
	case output != "":
		f, err := os.OpenFile(output, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return fmt.Errorf("write the key: %w", err)
		}
		_, err = fmt.Fprintln(f, key.Text())
		if serr := f.Sync(); err == nil {
			err = serr
		}
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return fmt.Errorf("write the key to %s: %w", output, err)
		}
		if a.json {
			err = a.printJSON(map[string]any{"message_type": "key", "repository": r.ID(), "file": output})
		} else {
			a.say("the key of repository %s is in %s", r.ID().Short(), output)
		}
		if err != nil {
			return err
		}
	case a.json:
		if err := a.printJSON(map[string]any{"message_type": "key", "repository": r.ID(), "key": key.Text()}); err != nil {
			return err
		}
	default:
		fmt.Fprintln(a.out, key.Text())
	}
	return r.Local().SetMark(keyExported)
}
