package main

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"orlop/docker"
	"orlop/repo"
)

// What the shell completes may take no longer than a person's patience, ask
// nothing and complain of nothing.
const completePatience = 3 * time.Second

// Which arguments of a command are completed.
const (
	firstArgument = false
	everyArgument = true
)

// A completer returns what the n-th argument may be; a description follows
// after a tab.
type completer func(ctx context.Context) []string

// complete completes the first argument, or every one, by what list returns.
func (a *app) complete(every bool, lists ...completer) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 && !every {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(c.Context(), completePatience)
		defer cancel()
		var found []string
		for _, list := range lists {
			for _, s := range list(ctx) {
				if strings.HasPrefix(s, prefix) {
					found = append(found, s)
				}
			}
		}
		return found, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	}
}

// volumeNames lists the engine's volumes.
func (a *app) volumeNames(ctx context.Context) []string {
	e, err := docker.Open(ctx, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil
	}
	defer e.Close()
	all, err := e.Volumes(ctx)
	if err != nil {
		return nil
	}
	var names []string
	for _, v := range all {
		names = append(names, v.Name)
	}
	return names
}

// sourceNames lists the sources of which there are snapshots, the latest first.
func (a *app) sourceNames(ctx context.Context) []string {
	var names []string
	seen := map[string]bool{}
	for _, s := range a.completeSnapshots(ctx) {
		name := s.Source.String()
		if !seen[name] {
			names = append(names, name+"\tnewest of "+s.Started.Go().Format(timeFormat))
		}
		seen[name] = true
	}
	return names
}

// snapshotNames lists the snapshots, the latest first.
func (a *app) snapshotNames(ctx context.Context) []string {
	var names []string
	for i, s := range a.completeSnapshots(ctx) {
		if i == 0 {
			names = append(names, "latest")
		}
		names = append(names, s.ID.Short()+"\t"+s.Started.Go().Format(timeFormat)+" "+cleanName(s.Source.String()))
	}
	return names
}

// completeSnapshots returns the snapshots, the latest first.
func (a *app) completeSnapshots(ctx context.Context) []repo.Snapshot {
	a.log, a.noQuestions = slog.New(slog.DiscardHandler), true
	r, err := a.open(ctx)
	if err != nil {
		return nil
	}
	defer r.Close()
	all, _, err := r.Snapshots(ctx)
	if err != nil {
		return nil
	}
	latest := make([]repo.Snapshot, 0, len(all))
	for i := len(all) - 1; i >= 0; i-- {
		latest = append(latest, all[i])
	}
	return latest
}
