{{- define "qwen3-triton.name" -}}
{{- /* 40 characters, so that suffixes still fit into the 63 of a DNS label. */ -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "qwen3-triton.gateway" -}}{{ include "qwen3-triton.name" . }}-gateway{{- end -}}
{{- define "qwen3-triton.triton" -}}{{ include "qwen3-triton.name" . }}-triton{{- end -}}

{{- /* Labels that never change, for selectors: (list $ "gateway"). */ -}}
{{- define "qwen3-triton.selector" -}}
app.kubernetes.io/name: qwen3-triton
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "qwen3-triton.labels" -}}
{{ include "qwen3-triton.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ (index . 0).Chart.Name }}-{{ (index . 0).Chart.Version }}
{{- end -}}

{{- /* repository:tag@digest; the digest takes precedence. (list .image default-tag) */ -}}
{{- define "qwen3-triton.image" -}}
{{- $image := index . 0 -}}
{{ $image.repository }}:{{ $image.tag | default (index . 1) }}{{ with $image.digest }}@{{ . }}{{ end }}
{{- end -}}

{{- define "qwen3-triton.tritonReplicas" -}}
{{- if .Values.triton.keda.enabled }}{{ .Values.triton.keda.maxReplicas }}{{ else }}{{ .Values.triton.replicas }}{{ end -}}
{{- end -}}

{{- /* One address for each pod of the StatefulSet: the gateway spreads batches over addresses, not over what a name
resolves to. The gateway skips those that are not running. */ -}}
{{- define "qwen3-triton.tritonUrls" -}}
{{- $name := include "qwen3-triton.triton" . -}}
{{- $urls := list -}}
{{- range $i := until (include "qwen3-triton.tritonReplicas" . | int) -}}
{{- $urls = append $urls (printf "grpc://%s-%d.%s:8001" $name $i $name) -}}
{{- end -}}
{{- join "," $urls -}}
{{- end -}}

{{- define "qwen3-triton.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}
