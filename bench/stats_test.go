//go:build linux

package main

import "testing"

func TestSpread(t *testing.T) {
	tests := []struct {
		name   string
		values []float64
		want   spread
	}{
		{"of nothing is nothing", nil, spread{}},
		{"of one is that one", []float64{3}, spread{3, 3, 3, 1}},
		{"of an odd number has the one in the middle, whatever the order", []float64{9, 1, 2}, spread{2, 1, 9, 3}},
		{"of an even number has the mean of the two in the middle", []float64{4, 1, 8, 2}, spread{3, 1, 8, 4}},
		{"has a median that one outlier does not move", []float64{1, 1, 1000}, spread{1, 1, 1000, 3}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := spreadOf(tt.values); got != tt.want {
				t.Errorf("spreadOf(%v) = %+v, want %+v", tt.values, got, tt.want)
			}
		})
	}
}

func TestSpreadLeavesTheValuesInTheirOrder(t *testing.T) {
	values := []float64{3, 1, 2}
	spreadOf(values)
	if values[0] != 3 || values[1] != 1 || values[2] != 2 {
		t.Errorf("the values are now %v", values)
	}
}
