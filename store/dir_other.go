//go:build unix && !linux

package store

import (
	"errors"
	"os"
)

func tmpfile(*os.File) (*os.File, error) { return nil, errors.ErrUnsupported }

func linkUnnamed(_, _ *os.File, _ string) error { return errors.ErrUnsupported }

func renameNoReplace(*os.File, string, string) error { return errors.ErrUnsupported }

// cachesListings cannot tell, and a needless touch is cheap.
func cachesListings(*os.File) bool { return true }

func bypass(*os.File, []byte) error { return errors.ErrUnsupported }

func unbypass(*os.File) error { return nil }

func cold(*os.File, int64) bool { return false }

func cool(*os.File) {}
