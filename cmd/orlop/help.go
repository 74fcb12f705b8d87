package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// helpWidth is for a terminal of the usual 80 columns.
const helpWidth = 80

// setHelp makes the help of root and of everything below it.
func setHelp(root *cobra.Command) {
	usage := root.UsageTemplate()
	for _, flags := range []string{".LocalFlags.FlagUsages", ".InheritedFlags.FlagUsages"} {
		usage = strings.Replace(usage, flags+" ", fmt.Sprintf("(%sWrapped %d) ", flags, helpWidth), 1)
	}
	root.SetUsageTemplate(usage)
	root.AddCommand(
		topic("environment", "Variables of the environment, and where things are kept", fmt.Sprintf(environmentHelp,
			defaultRepository(), configDir(), cacheDir())),
		topic("exit-codes", "What the exit code of a command says", exitCodesHelp),
		topic("naming", "How a snapshot is named", namingHelp),
	)
	root.SetHelpCommand(&cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Help about a command or a topic",
		ValidArgsFunction: func(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			at, _, err := root.Find(args)
			var names []string
			for _, sub := range at.Commands() {
				if err == nil && !sub.Hidden && strings.HasPrefix(sub.Name(), prefix) {
					names = append(names, sub.Name())
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			about, rest, err := root.Find(args)
			switch {
			case err != nil || about == root && len(rest) > 0:
				return unknownCommand(root, args)
			case len(rest) > 0:
				return unknownCommand(about, rest)
			}
			about.InitDefaultHelpFlag()
			about.InitDefaultVersionFlag()
			return about.Help()
		},
	})
}

// topic is a page of help that is no command.
func topic(name, short, long string) *cobra.Command {
	c := &cobra.Command{Use: name, Short: short, Long: strings.TrimSpace(long)}
	c.SetUsageFunc(func(*cobra.Command) error { return nil })
	return c
}

const environmentHelp = `
A flag is stronger than a variable. Of the variables for the key or password at
most one may be set.

  ORLOP_REPOSITORY         directory of the repository, else
                           %s
  ORLOP_KEY                the generated key itself
  ORLOP_KEY_FILE           file with the key, else the one that init made in
                           %s/keys
  ORLOP_PASSWORD           the password itself
  ORLOP_PASSWORD_FILE      file whose first line is the password
  ORLOP_PASSWORD_COMMAND   shell command that prints the password

  DOCKER_HOST, DOCKER_CONTEXT, DOCKER_CONFIG, DOCKER_TLS_VERIFY,
  DOCKER_CERT_PATH         where the Docker engine is, as for docker itself
  XDG_DATA_HOME, XDG_CONFIG_HOME, XDG_CACHE_HOME
                           other places for the repository, the key, the cache
  TZ                       time zone of the times that are shown and typed

What this host remembers to be fast is in %s.
It can be deleted at any time.`

const exitCodesHelp = `
    0   done
    1   failed
    2   the command line is wrong
    3   partial: there is a snapshot, but something could not be read; or there
        is a restore, but something could not be set
    4   damage was found in the repository
   10   there is no repository
   12   wrong password or key
  130   interrupted

"orlop backup" of several sources goes on after one that failed.`

const namingHelp = `
Wherever a command takes a SNAPSHOT, it can be named by

  latest                     the newest of all
  1a2b3c4d                   the beginning of its id, 4 digits or more
  pgdata                     the newest of a volume
  shop/db                    the same, as compose calls it: project/volume
  /srv/wiki                  the newest of a directory
  pgdata@2026-11-20          the newest at or before then; also
  pgdata@2026-11-20T14:00    with a time, with seconds, with a zone (RFC 3339)
  pgdata@3h                  the newest that is at least that old: s m h d w

A volume and a directory, or a source and an id, that are spelled the same are
told apart by volume:NAME and path:/DIRECTORY. What could mean two snapshots is
an error that names both.`
