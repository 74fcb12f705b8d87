//go:build linux

package main

import "slices"

// A spread is a figure that was measured several times.
type spread struct {
	Median, Min, Max float64
	Runs             int
}

// spreadOf returns the spread of values, or the zero spread of none. The median
// of an even number of values is the mean of the middle two.
func spreadOf(values []float64) spread {
	n := len(values)
	if n == 0 {
		return spread{}
	}
	v := slices.Sorted(slices.Values(values))
	return spread{Median: (v[(n-1)/2] + v[n/2]) / 2, Min: v[0], Max: v[n-1], Runs: n}
}
